"""`cfab`: one command, each subcommand in a module of its own that is imported only when it is used."""
