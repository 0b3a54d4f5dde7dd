"""CISS methods: one module each; the contract stands in docs/add_a_method.md."""
