"""Programs that show and measure the system: the demo, and the comparison with what else there is.

`sharedlog bench` itself lies in `sharedlog/benchmark/`, since it is part of the command.
"""
