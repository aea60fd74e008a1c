"""How processes talk: the `Transport` and `Server` interfaces, and their gRPC implementations."""
