"""The command line: one file for each subcommand, options, messages.

Comes in: arguments. Goes out: an exit code and one sentence for a mistake.
Must not be imported by any other package.
"""
