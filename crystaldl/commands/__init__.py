"""The subcommands of ``crystaldl``, a module for each wing."""
