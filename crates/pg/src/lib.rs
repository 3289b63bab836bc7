//! A private PostgreSQL: finds or fetches the server binaries, starts, adopts and stops a cluster
