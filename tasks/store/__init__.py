"""Everything that touches Redis/Valkey: keys, Lua scripts, and one small class per kind of record."""
