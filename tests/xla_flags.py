"""How XLA compiles most tests, which compile for longer than they compute."""

QUICK = (
    # LLVM need not optimise.
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    # jaxlib 0.10 can emit loops without MLIR, in half of the time; jaxlib 0.12 cannot,
    # and ignores this.
    " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true"
)
