"""The command line: what a person types and reads.

`app` runs a command, `options` declares the options, and each group of commands has one module, which also formats what the commands
print. Import `cli.app.main` and nothing else. Only this room prints, and only `terminal` imports rich. No other room imports from here.
"""
