"""Everything SQL. It decides nothing and returns row objects."""
