//! The gRPC contract: generated types, clients, servers and the descriptor set
