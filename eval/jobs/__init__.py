"""What the commands do, with typed arguments: nothing here parses, prints or exits."""
