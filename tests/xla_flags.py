"""How XLA compiles most tests, which compile for longer than they compute."""

QUICK = (
    # LLVM need not optimise.
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    # Up to jaxlib 0.11 loops are emitted as in LLVM itself, in half of the time that
    # emitters in MLIR take. Later ones have no others and ignore this.
    " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true"
)
