"""The subcommands, a file each: which flags they take, and what they call. Nothing heavy is imported at the top."""
