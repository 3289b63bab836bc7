//! Use cases, one a file; each owns its transaction.
//!
//! | module | what it does |
//! |---|---|
//! | [`record_usage`] | takes events for recording and waits for their commit |
//! | `account_room` | the part of the room that one account may take |
//! | [`writer`] | the tasks that write: group commit of what gathered meanwhile |
//! | [`flush`] | the transaction that counts a group of events exactly once |
//! | `facts` | what the database says of its events |
//! | [`locked`] | what it finds locked, and how long it waits for rows |
//! | `aside` | calls that need what is locked: tried again until it is free |
//! | [`away`] | what becomes of events while the database is away |
//! | [`spooling`] | takes events while the database is away, into the spool |
//! | [`known`] | what the database last said of accounts and keys: decides then |
//! | [`drain`] | counts what is in the spool when the database is back |
//! | [`drained`] | what is committed with the rows of drained events |
//! | [`feed`] | what the database says has changed, to whoever caches it |
//! | [`bound_routes`] | which routes have a place in an account's rollups |
//! | [`check_quota`] | admits units, exactly up to a hard limit |
//! | [`outage`] | whether the database is away |
//! | [`quota`] | what this replica holds of all quotas: leases in memory |
//! | [`current_usage`] | an account's current period, live |
//! | [`create_api_key`] | makes an API key |
//! | [`lease_quota`] | hands units to a client that admits in its own process, and settles them |
//! | [`list_api_keys`] | an account's keys, newest first |
//! | [`revoke_api_key`] | ends a key for good |
//! | [`rotate_api_key`] | gives a key a new secret; the old one stays valid for a while |
//! | [`verify_api_key`] | whose key a text is, if it opens one |
//! | [`key_reads`] | reads the keys that are not remembered, for all who wait |
//! | [`register_import`] | the time shift of an imported file |
//! | [`rate_limit`] | admits what a proxy asks about: by all descriptors or none |
//! | [`rebuild_day`] | rebuilds a day's rollups from the raw log |
//! | [`stalled`] | ends what holds locks and is not heard any more |
//! | [`maintenance`] | partitions made ahead and dropped, settled leases and gone holders deleted |

mod account_room;
pub mod aside;
pub mod away;
pub mod bound_routes;
pub mod check_quota;
pub mod create_api_key;
pub mod current_usage;
pub mod drain;
pub mod drained;
mod facts;
pub mod feed;
pub mod flush;
mod in_turn;
pub mod key_reads;
pub mod known;
pub mod lease_quota;
pub mod list_api_keys;
pub mod locked;
pub mod maintenance;
pub mod outage;
pub mod quota;
pub mod rate_limit;
pub mod rebuild_day;
pub mod record_usage;
pub mod register_import;
pub mod revoke_api_key;
pub mod rotate_api_key;
pub mod spooling;
pub mod stalled;
pub mod verify_api_key;
pub mod writer;
