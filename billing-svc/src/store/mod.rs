//! The only SQL of the service, one file a table. Functions take a connection; the use case owns the transaction.
