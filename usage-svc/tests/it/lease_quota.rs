//! LeaseQuota: units in clients' hands, exact over clients and replicas, whoever goes away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{CheckQuotaResponse, LeaseQuotaRequest, LeaseQuotaResponse, UsageEvent};
use nexus_testkit::db::TestDb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use uuid::Uuid;

use crate::support::*;

/// A client with a stream.
pub(crate) struct Leasing {
    wishes: mpsc::Sender<LeaseQuotaRequest>,
    answers: Streaming<LeaseQuotaResponse>,
}

/// The client of all streams, but where another one is meant.
const CLIENT: &str = "3c9ad9d4-0cf6-4a8e-9a3f-5d5a5f9f1b6e";

pub(crate) fn want(want_count: i64) -> LeaseQuotaRequest {
    let (eco_id, client_id) = ("eco_a".to_owned(), CLIENT.to_owned());
    LeaseQuotaRequest { eco_id, client_id, want_count, ..LeaseQuotaRequest::default() }
}

pub(crate) fn settle(lease_id: &str, used_count: i64) -> LeaseQuotaRequest {
    LeaseQuotaRequest { lease_id: lease_id.to_owned(), used_count, ..want(0) }
}

impl Leasing {
    pub(crate) async fn by(options: &CallOptions, server: &Server) -> Result<Self> {
        let (wishes, sent) = mpsc::channel(64);
        let request = options.request(ReceiverStream::new(sent));
        let answers = server.client()?.lease_quota(request).await?.into_inner();
        Ok(Self { wishes, answers })
    }

    pub(crate) async fn at(server: &Server) -> Result<Self> {
        Self::by(&service()?, server).await
    }

    pub(crate) async fn send(&self, wish: LeaseQuotaRequest) -> Result<()> {
        Ok(self.wishes.send(wish).await?)
    }

    /// The next message, whatever it is.
    pub(crate) async fn next(&mut self) -> Result<LeaseQuotaResponse, Status> {
        let next = tokio::time::timeout(TIMEOUT, self.answers.message()).await;
        next.expect("nothing came").transpose().expect("the stream goes on")
    }

    /// Returns once all is asked back.
    pub(crate) async fn is_recalled(&mut self) -> Result<()> {
        let next = self.next().await?;
        ensure!(next == LeaseQuotaResponse { recall: true, ..Default::default() }, "{next:?}");
        Ok(())
    }

    /// The answer to a wish; what is asked back meanwhile is passed over.
    pub(crate) async fn ask(&mut self, wish: LeaseQuotaRequest) -> Result<LeaseQuotaResponse, Status> {
        self.send(wish).await.map_err(|e| Status::internal(e.to_string()))?;
        loop {
            let answer = self.next().await?;
            if !answer.recall {
                return Ok(answer);
            }
        }
    }
}

/// What a client that holds nothing gets of so many units wanted.
pub(crate) async fn granted_of(server: &Server, units: i64) -> Result<(Leasing, LeaseQuotaResponse)> {
    let mut client = Leasing::at(server).await?;
    // A server that has just begun to hear of changes lends nothing yet.
    while client.ask(want(0)).await?.valid_ms == 0 {}
    let granted = client.ask(want(units)).await?;
    ensure!(granted.granted_count > 0, "{granted:?}");
    Ok((client, granted))
}

#[tokio::test]
async fn what_a_client_used_is_consumed_once_and_the_rest_comes_back() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let (mut client, lease) = granted_of(&server, 100).await?;
    assert_eq!((lease.granted_count, lease.limit_count, lease.consumed_count), (100, 100_000, 100));
    assert!((59_000..=60_000).contains(&lease.valid_ms), "{lease:?}");
    let admitted =
        |units_count| UsageEvent { admission: lease.lease_id.clone(), units_count, ..event("eco_a") };
    record(&server, admitted(20)).await?;
    let usage = current(&server, "eco_a").await?;
    assert_eq!((usage.api_calls_count, usage.consumed_count), (20, 100), "the client may use the rest");
    let settled = client.ask(settle(&lease.lease_id, 30)).await?;
    assert_eq!((settled.granted_count, settled.consumed_count), (0, 30));
    // What is recorded later of what was used before is covered, and nothing beyond it.
    record(&server, admitted(10)).await?;
    record(&server, admitted(1)).await?;
    let usage = current(&server, "eco_a").await?;
    assert_eq!((usage.api_calls_count, usage.consumed_count, usage.forfeited_count), (31, 31, 0));
    // Once is enough.
    assert_eq!(client.ask(settle(&lease.lease_id, 0)).await?.consumed_count, 30, "as last heard");
    assert_eq!(granted(&db, "eco_a").await?, 30);
    Ok(())
}

#[tokio::test]
async fn the_stream_ends_once_a_client_releases() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let (mut client, lease) = granted_of(&server, 10).await?;
    client.ask(LeaseQuotaRequest { release: true, ..settle(&lease.lease_id, 4) }).await?;
    assert_eq!(client.answers.message().await?, None);
    assert_eq!(granted(&db, "eco_a").await?, 4);
    Ok(())
}

/// What is recorded against a lease cannot be given back, whatever its client says.
#[tokio::test]
async fn a_client_cannot_give_back_what_is_recorded() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let (mut client, lease) = granted_of(&server, 10).await?;
    record(&server, UsageEvent { admission: lease.lease_id.clone(), units_count: 7, ..event("eco_a") })
        .await?;
    client.ask(settle(&lease.lease_id, 0)).await?;
    assert_eq!(granted(&db, "eco_a").await?, 7);
    Ok(())
}

/// A client that wants units as long as there are any, and uses each lease, but for the last unit where that is asked
/// back before; what it has used in the end.
async fn use_up(server: &Server, units: i64) -> Result<i64> {
    let mut client = Leasing::at(server).await?;
    let mut total = 0;
    loop {
        let lease = client.ask(want(units)).await?;
        if lease.granted_count == 0 {
            if lease.retry_delay_ms > 1_000 {
                return Ok(total);
            }
            continue;
        }
        client.send(want(0)).await?;
        let mut used = lease.granted_count;
        while client.next().await?.recall {
            used = lease.granted_count - 1;
        }
        total += used;
        client.ask(settle(&lease.lease_id, used)).await?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_the_limit_is_admitted_by_clients_and_replicas_together() -> Result<()> {
    let db = database(1000).await?;
    let (one, two) = (Server::start(db.args()).await?, Server::start(db.args()).await?);
    hear(&db, 2).await?;
    let checks = async {
        let mut admitted = 0;
        loop {
            let answers = burst(&[&one, &two], "eco_a", 50).await?;
            let now = answers.iter().filter(|answer| answer.is_ok()).count();
            if now == 0 {
                return anyhow::Ok(i64::try_from(admitted)?);
            }
            admitted += now;
        }
    };
    let (a, b, c, d) = tokio::try_join!(use_up(&one, 40), use_up(&one, 7), use_up(&two, 100), checks)?;
    // What came back last nobody asked for. Some of it may still be on its way.
    let mut rest = 0;
    eventually(async || {
        rest += i64::from(check(&two, "eco_a", 1).await.is_ok());
        Ok(a + b + c + d + rest >= 1000)
    })
    .await?;
    assert_eq!(a + b + c + d + rest, 1000, "{a} + {b} + {c} + {d} + {rest}");
    refused(check(&two, "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert_eq!(granted(&db, "eco_a").await?, 1000);
    Ok(())
}

/// Whoever lacks units that others hold waits for them for a quarter of a second. On a busy machine they come back later:
/// whoever was refused asks again then.
const WAITED: Duration = Duration::from_millis(200);

/// The answer to a check of units that come back when they are asked for.
async fn check_for_idle(server: &Server, units: i64) -> Result<CheckQuotaResponse> {
    let began = Instant::now();
    loop {
        match check(server, "eco_a", units).await {
            Err(refusal) if refusal.code() == Code::ResourceExhausted => {
                ensure!(began.elapsed() >= WAITED, "refused at once: {refusal:?}");
            }
            answer => return Ok(answer?),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_that_lie_idle_at_a_client_are_admitted_elsewhere() -> Result<()> {
    for here in [true, false] {
        let db = database(60).await?;
        let (one, two) = (Server::start(db.args()).await?, Server::start(db.args()).await?);
        hear(&db, 2).await?;
        let (mut client, lease) = granted_of(&one, 60).await?;
        let idle = lease.granted_count;
        let other = if here { &one } else { &two };
        let (all, ()) = tokio::try_join!(check_for_idle(other, 60 - 1), async {
            client.is_recalled().await?;
            client.ask(settle(&lease.lease_id, 1)).await?;
            Ok(())
        })?;
        assert_eq!(all.remaining_count, 0, "{idle} were idle");
        refused(check(&one, "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
        assert_eq!(granted(&db, "eco_a").await?, 60);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_holds_nothing_waits_for_what_another_one_holds() -> Result<()> {
    let db = database(1).await?;
    let (one, two) = (Server::start(db.args()).await?, Server::start(db.args()).await?);
    hear(&db, 2).await?;
    let (mut idle, lease) = granted_of(&one, 1).await?;
    let mut waiting = Leasing::at(&two).await?;
    let wishes = async {
        loop {
            let began = Instant::now();
            let got = waiting.ask(want(5)).await?;
            if got.granted_count > 0 {
                return anyhow::Ok(got);
            }
            ensure!(began.elapsed() >= WAITED, "it did not wait: {got:?}");
        }
    };
    let (got, ()) = tokio::try_join!(wishes, async {
        idle.is_recalled().await?;
        idle.ask(settle(&lease.lease_id, 0)).await?;
        Ok(())
    })?;
    assert_eq!(got.granted_count, 1);
    let nothing = idle.ask(want(1)).await?;
    assert_eq!((nothing.granted_count, nothing.lease_id.as_str()), (0, ""));
    assert_eq!(nothing.retry_delay_ms, 1000, "another client holds a unit");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_of_a_stream_that_broke_are_forfeited_until_their_client_comes_back() -> Result<()> {
    let db = database(60).await?;
    let (one, two) = (Server::start(db.args()).await?, Server::start(db.args()).await?);
    hear(&db, 2).await?;
    let (client, lease) = granted_of(&one, 10).await?;
    let held = lease.granted_count;
    assert_eq!(current(&two, "eco_a").await?.forfeited_count, 0);
    drop(client);
    eventually(async || Ok(current(&two, "eco_a").await?.forfeited_count == held)).await?;
    assert_eq!(check(&two, "eco_a", 60 - held).await?.remaining_count, 0, "all but what may be used");
    refused(check(&one, "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    // A call that it had admitted is recorded.
    record(&two, UsageEvent { admission: lease.lease_id.clone(), ..event("eco_a") }).await?;
    assert_eq!(current(&two, "eco_a").await?.forfeited_count, held - 1);

    let mut back = Leasing::at(&two).await?;
    back.ask(settle(&lease.lease_id, 1)).await?;
    let usage = current(&two, "eco_a").await?;
    assert_eq!((usage.forfeited_count, usage.consumed_count), (0, 60 - held + 1));
    // The other replica had refused, and is told of the return by the change feed.
    eventually(async || match check(&one, "eco_a", held - 1).await {
        Ok(admitted) => {
            assert_eq!(admitted.remaining_count, 0);
            Ok(true)
        }
        Err(status) if status.code() == Code::ResourceExhausted => Ok(false),
        Err(status) => Err(status.into()),
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_lent_by_a_replica_that_is_killed_are_forfeited_until_settled() -> Result<()> {
    let db = database(60).await?;
    let one = Server::start_apart(db.args()).await?;
    let (client, lease) = granted_of(&one, 10).await?;
    one.kill().await?;
    drop(client);
    age_holders(&db).await?;
    let two = Server::start(db.args()).await?;
    assert_eq!(current(&two, "eco_a").await?.forfeited_count, lease.granted_count);
    let mut back = Leasing::at(&two).await?;
    back.ask(settle(&lease.lease_id, 3)).await?;
    let usage = current(&two, "eco_a").await?;
    assert_eq!((usage.forfeited_count, usage.consumed_count), (0, 3));
    Ok(())
}

/// Has grants wait for this lock before they are committed.
async fn hold_up_grants(db: &TestDb) -> Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    sqlx::raw_sql(
        "create function wait() returns trigger language plpgsql as
         $$ begin perform pg_advisory_xact_lock_shared(42); return null; end $$;
         create constraint trigger wait after insert on eco_quota_leases
         deferrable initially deferred for each row when (new.settled_time is null) execute function wait();",
    )
    .execute(&db.pool)
    .await?;
    let mut lock = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select pg_advisory_xact_lock(42)").execute(&mut *lock).await?;
    Ok(lock)
}

/// The client chose the id of the lease: so it can settle a grant whose answer it never got.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_whose_answer_a_client_never_got_can_be_settled() -> Result<()> {
    let db = database(60).await?;
    let (one, two) = (Server::start(db.args()).await?, Server::start(db.args()).await?);
    hear(&db, 2).await?;
    let mut lock = Some(hold_up_grants(&db).await?);
    let lease_id = Uuid::new_v4().to_string();
    let broken = Leasing::at(&one).await?;
    broken.send(LeaseQuotaRequest { want_lease_id: lease_id.clone(), ..want(20) }).await?;
    service_waits(&db).await?;
    drop(broken);
    let mut back = Leasing::at(&two).await?;
    let settling = back.ask(settle(&lease_id, 0));
    let release = async {
        // The settlement waits for the grant: for its transaction, whose lock belongs to no database.
        while sqlx::query_scalar::<_, i64>(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
        )
        .fetch_one(&db.pool)
        .await?
            < 2
        {}
        lock.take().context("held until now")?.commit().await?;
        anyhow::Ok(())
    };
    tokio::try_join!(async { anyhow::Ok(settling.await?) }, release)?;
    // A settlement that takes longer than 2 s is answered before.
    eventually(async || Ok(granted(&db, "eco_a").await? == 0)).await?;
    assert_eq!(current(&two, "eco_a").await?.forfeited_count, 0);

    // And one that was settled before it came cannot happen any more.
    let early = Uuid::new_v4().to_string();
    back.ask(settle(&early, 0)).await?;
    let late = back.ask(LeaseQuotaRequest { want_lease_id: early, ..want(20) }).await;
    assert_eq!(fields(&refused(late, Code::InvalidArgument, "INVALID_ARGUMENT")), ["want_lease_id"]);
    assert_eq!(granted(&db, "eco_a").await?, 0);
    Ok(())
}

#[tokio::test]
async fn only_a_lease_of_the_accounts_clients_can_be_settled() -> Result<()> {
    let db = database(60).await?;
    let server = Server::start(db.args()).await?;
    account(&db, "eco_b", Plan::Free).await?;
    let of_the_replica = check(&server, "eco_a", 5).await?.admission;
    let mut other = Leasing::at(&server).await?;
    let of_another = other.ask(LeaseQuotaRequest { eco_id: "eco_b".to_owned(), ..want(5) }).await?;
    assert!(of_another.granted_count > 0);
    for lease in [&of_the_replica, &of_another.lease_id] {
        let foreign = Leasing::at(&server).await?.ask(settle(lease, 0)).await;
        assert_eq!(fields(&refused(foreign, Code::InvalidArgument, "INVALID_ARGUMENT")), ["lease_id"]);
        let taken = LeaseQuotaRequest { want_lease_id: lease.clone(), ..want(1) };
        let taken = Leasing::at(&server).await?.ask(taken).await;
        assert_eq!(fields(&refused(taken, Code::InvalidArgument, "INVALID_ARGUMENT")), ["want_lease_id"]);
    }
    assert_eq!(granted(&db, "eco_a").await?, 5);
    assert_eq!(granted(&db, "eco_b").await?, of_another.granted_count);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_settled_by_its_client_alone() -> Result<()> {
    let db = database(60).await?;
    let (one, two) = (Server::start(db.args()).await?, Server::start(db.args()).await?);
    hear(&db, 2).await?;
    let (client, lease) = granted_of(&one, 10).await?;
    let stranger = LeaseQuotaRequest { client_id: Uuid::new_v4().to_string(), ..settle(&lease.lease_id, 0) };
    let is_refused = async || {
        let foreign = Leasing::at(&two).await?.ask(stranger.clone()).await;
        assert_eq!(fields(&refused(foreign, Code::InvalidArgument, "INVALID_ARGUMENT")), ["lease_id"]);
        anyhow::Ok(())
    };
    is_refused().await?;
    drop(client);
    eventually(async || Ok(current(&two, "eco_a").await?.forfeited_count == lease.granted_count)).await?;
    is_refused().await?;
    assert_eq!(granted(&db, "eco_a").await?, lease.granted_count);
    Leasing::at(&two).await?.ask(settle(&lease.lease_id, 3)).await?;
    assert_eq!(current(&two, "eco_a").await?.consumed_count, 3);
    Ok(())
}

#[tokio::test]
async fn a_stream_settles_so_many_leases_that_it_was_not_given() -> Result<()> {
    let db = database(60).await?;
    let server = Server::start(db.args()).await?;
    let mut client = Leasing::at(&server).await?;
    for _ in 0..64 {
        client.ask(settle(&Uuid::new_v4().to_string(), 0)).await?;
    }
    let one_more = client.ask(settle(&Uuid::new_v4().to_string(), 0)).await;
    assert_eq!(fields(&refused(one_more, Code::InvalidArgument, "INVALID_ARGUMENT")), ["lease_id"]);
    Ok(())
}

#[tokio::test]
async fn a_wish_that_is_invalid_is_refused_with_every_field() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let wish = LeaseQuotaRequest {
        eco_id: String::new(),
        want_count: -1,
        used_count: -1,
        want_lease_id: "7".to_owned(),
        ..LeaseQuotaRequest::default()
    };
    let status =
        refused(Leasing::at(&server).await?.ask(wish).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(
        fields(&status),
        ["eco_id", "client_id", "used_count", "lease_id", "want_count", "want_lease_id"]
    );
    let mut client = Leasing::at(&server).await?;
    client.ask(want(0)).await?;
    let other = client.ask(LeaseQuotaRequest { eco_id: "eco_b".to_owned(), ..want(0) }).await;
    assert_eq!(fields(&refused(other, Code::InvalidArgument, "INVALID_ARGUMENT")), ["eco_id"]);
    let mut client = Leasing::at(&server).await?;
    client.ask(want(0)).await?;
    let other = client.ask(LeaseQuotaRequest { client_id: Uuid::new_v4().to_string(), ..want(0) }).await;
    assert_eq!(fields(&refused(other, Code::InvalidArgument, "INVALID_ARGUMENT")), ["client_id"]);
    let unknown = LeaseQuotaRequest { eco_id: "eco_nobody".to_owned(), ..want(1) };
    refused(Leasing::at(&server).await?.ask(unknown).await, Code::NotFound, "ACCOUNT_NOT_FOUND");
    Ok(())
}

#[tokio::test]
async fn a_client_that_does_not_say_who_it_is_loses_its_stream() -> Result<()> {
    let (_db, server) = server().await?;
    let mut silent = Leasing::at(&server).await?;
    refused(silent.next().await, Code::DeadlineExceeded, "NO_REQUEST");
    Ok(())
}

/// Each would leave a row, over any number of streams.
#[tokio::test]
async fn leases_that_are_made_up_leave_so_many_rows_and_no_more() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let (mut client, lease) = granted_of(&server, 10).await?;
    sqlx::query(
        "select count(nexus_settle_lent_quota(gen_random_uuid(), $1::uuid, 'eco_a', 0, false)) from generate_series(1, 1200)",
    )
    .bind(CLIENT)
    .execute(&db.pool)
    .await?;
    let made = "select count(*) from eco_quota_leases where period_start = period_end";
    assert_eq!(sqlx::query_scalar::<_, i64>(made).fetch_one(&db.pool).await?, 1_000);
    let made_up = settle(&Uuid::new_v4().to_string(), 0);
    let mut another = Leasing::at(&server).await?;
    refused(another.ask(made_up).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    // What it was given it settles all the same.
    client.ask(settle(&lease.lease_id, 4)).await?;
    assert_eq!(granted(&db, "eco_a").await?, 4);
    Ok(())
}
