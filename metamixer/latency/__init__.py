"""How long a network takes on real runtimes: timed here, or measured by another program.

`rows` says what a measurement holds, and keeps it beside the runs. `measure` times networks on the runtimes of
`runtimes`, each in a process of its own (`session`). `imports` reads what a phone measured. `metamixer.deploy`
converts the networks, `analysis.latency` reads what was measured.
"""
