"""ScissionLite against everything else that one could choose, measured in turns.

__main__     the command line             networks   the networks and their frames
run          a network, link by link  ->  contenders what each contender plans for a link
                                          links      rate and delay of the link
                                          machine    cores, CPU time, the model of energy
device_process, grpc_edge  the processes of the contenders that scissionlite itself has not
records      a JSON file a cell       ->  claims, tables, figures, report  docs/benchmarks.md
"""
