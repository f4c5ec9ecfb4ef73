"""Great Expectations gates: no data goes on that breaks its contract. Suites are built from `contracts.tables`."""
