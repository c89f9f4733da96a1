"""The command line: what a person types and reads.

`app` runs a command, and `options` states the options that commands share. Each group of commands has one module, which
declares them and formats what they print. Import `cli.app.run_command` and nothing else. Only this room prints, and only
`console` imports rich. No other room imports from here.
"""
