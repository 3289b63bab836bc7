//! Pools of the services.

use nexus_kit::db::{self, Role};
use nexus_testkit::db::TestDb;
use sqlx::{Executor, Row};

/// A caller that goes away at any moment of `begin` leaves nothing for the next one.
#[tokio::test]
async fn a_begin_that_is_given_up_leaves_no_transaction_to_the_next_caller() {
    let test_db = TestDb::new().await.expect("a database");
    let mut args = test_db.args();
    args.database_max_connections = 2;
    let pool = db::pool(&args, Role::Usage).expect("a good URL");
    let mut given_up = 0;
    for polls in (0..40).cycle() {
        // Every round gives up at least its first.
        if given_up == 40 {
            break;
        }
        let yields = async {
            for _ in 0..polls {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            begun = db::begin(&pool) => drop(begun.expect("the database is there")),
            () = yields => given_up += 1,
        }
        let mut connection = db::acquire(&pool).await.expect("a connection");
        let row = connection.fetch_one("select now() = statement_timestamp()").await.expect("an answer");
        assert!(row.get::<bool, _>(0), "the connection is within a transaction that nobody ended");
    }
}
