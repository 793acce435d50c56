"""For whoever runs experiments: grids of runs, tables and figures of the paper, intervals, memory and time of a run."""
