"""tools/bench engine: a pool on real files, beside what its libraries would take by themselves."""
