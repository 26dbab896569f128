"""The parts of a record beside the rules: what `record.gsm8k`, `canary`, `mutants`, `compile` and `races` hold, typed.

One definition for both sides: a command builds these objects and gives them to the record (`record.gsm8k_run = run`), a
reader gets them back from there. The record itself keeps JSON, so that it can hold what this version does not know. In
reading, missing fields have their defaults, unknown ones are ignored, and a field of the wrong type raises RecordError with
its name. What a part leaves out of its JSON, its `to_json` says. Standard library only.
"""
