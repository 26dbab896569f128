import os

if os.environ.get("FAKE_IMPORT_ERROR"):
    raise ImportError("cannot import name 'dsl_user_op' from 'cutlass.cutlass_dsl'")
