"""Ranks that are processes: a pool of them, what each of them does in a call, and the libraries that carry the tokens.

`pool` asks all ranks at once and tells which one died or hangs; `worker` is a rank; `collectives` is what a library of
a rank offers, `gloo`, `deepep`, `elastic` and `nccl_ep` are four of them; `spreading` lays a problem's ranks over those that there are.
"""
