"""The one writer: the gate grants or refuses, the journal keeps, a backend writes. Nothing else in trimtab writes."""
