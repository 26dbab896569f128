from cutlass import cute, utils
