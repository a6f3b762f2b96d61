"""What passes between the roles, and the tables that everyone reads. Imports no role."""
