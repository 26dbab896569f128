"""Dumps of others, read as captured calls: FlashInfer's API log, flashinfer-bench workloads, SGLang's dumper. Nothing is written."""
