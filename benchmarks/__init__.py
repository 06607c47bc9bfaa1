"""What `make bench` runs: the real `twistd foreman` between a client and a stand-in, measured from outside.

Each module measures one promise and has `measure(bench)`; `bench` (`benchmarks.processes.Bench`) starts what it needs
and ends it again.  Things that are compared run side by side in one run, in rounds that take turns, and medians are
held against one another: the machine is never as quiet as one would like.
"""
