"""Programs that show and measure the system: the demo, and the comparison with what else there is.

`sharedlog bench` itself lies in `sharedlog/benchmark/`, since it is part of the command.
"""

from sharedlog.tuning import tune_process

# Each benchmark is a process of its own; peers' clients that use gRPC gain from it as ours does.
tune_process()
