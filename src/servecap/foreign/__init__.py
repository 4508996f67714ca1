"""Result files of other load testers, read into runs of our own (docs/import.md)."""
