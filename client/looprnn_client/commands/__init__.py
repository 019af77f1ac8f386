"""One module for each of looprnn-client's commands, the same two functions in each:
add_arguments(parser), and run(arguments), which gives the lines to print as they come.
"""
