"""What goes wrong, how often, and why: a method's misses by edit, by reason, against other methods, as pictures."""
