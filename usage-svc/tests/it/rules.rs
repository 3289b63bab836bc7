//! The rules that exist twice, in the core and in the database, are the same.

use anyhow::Result;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use nexus_core::{
    period::Period,
    sketch::{self, Sketch},
};
use nexus_testkit::db::TestDb;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Anchors at the ends of months and in leap years, and instants around and between their periods.
fn pairs() -> Vec<(DateTime<Utc>, DateTime<Utc>)> {
    let mut rng = StdRng::seed_from_u64(31);
    let mut pairs = Vec::new();
    for year in [1999, 2000, 2023, 2024, 2026, 2100] {
        for month in 1..=12 {
            for day in [1, 15, 27, 28, 29, 30, 31] {
                let Some(date) = NaiveDate::from_ymd_opt(year, month, day) else { continue };
                let micros = rng.random_range(0..86_400_000_000);
                let midnight = date.and_hms_opt(0, 0, 0).expect("midnight exists").and_utc();
                let anchor = midnight + TimeDelta::microseconds(micros);
                for _ in 0..8 {
                    let at = anchor + TimeDelta::seconds(rng.random_range(-100_000_000..100_000_000));
                    let period = Period::containing(anchor, at);
                    let tick = TimeDelta::microseconds(1);
                    pairs.extend(
                        [at, period.start, period.start - tick, period.end - tick].map(|at| (anchor, at)),
                    );
                }
            }
        }
    }
    pairs
}

#[tokio::test]
async fn periods_are_the_same_in_the_database() -> Result<()> {
    let db = TestDb::new().await?;
    let pairs = pairs();
    let (anchors, instants): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
    for zone in ["UTC", "America/New_York", "Asia/Kolkata"] {
        let mut connection = nexus_kit::db::acquire(&db.pool).await?;
        sqlx::query("select set_config('timezone', $1, false)").bind(zone).execute(&mut *connection).await?;
        let periods: Vec<(DateTime<Utc>, DateTime<Utc>)> = sqlx::query_as(
            "select nexus_period_start(anchor, at), nexus_period_end(anchor, at)
             from unnest($1::timestamptz[], $2::timestamptz[]) with ordinality as p (anchor, at, position) order by position",
        )
        .bind(&anchors)
        .bind(&instants)
        .fetch_all(&mut *connection)
        .await?;
        for ((anchor, at), (start, end)) in pairs.iter().zip(periods) {
            let period = Period::containing(*anchor, *at);
            assert_eq!(period, Period { start, end }, "anchor {anchor}, at {at}");
            assert!(period.contains(*at));
        }
    }
    Ok(())
}

#[tokio::test]
async fn latency_buckets_are_the_same_in_the_database() -> Result<()> {
    let db = TestDb::new().await?;
    let mut rng = StdRng::seed_from_u64(32);
    let mut values: Vec<i32> =
        (-2..70_000).chain((0..20_000).map(|_| rng.random_range(0..=86_400_000))).collect();
    for exponent in 0..31 {
        values.extend([-1, 0, 1].map(|d| (1i32 << exponent).saturating_add(d)));
    }
    // Both sides of every boundary.
    for bucket in 0..850 {
        let boundary = (f64::from(bucket) / 32.0).exp2();
        values.extend([boundary.floor() as i32, boundary.ceil() as i32]);
    }
    let stored: Vec<i64> = sqlx::query_scalar(
        "select nexus_sketch_bucket(ms) from unnest($1::int[]) with ordinality as v (ms, position) order by position",
    )
    .bind(&values)
    .fetch_all(&db.pool)
    .await?;
    for (ms, bucket) in values.iter().zip(stored) {
        assert_eq!(sketch::bucket(*ms), bucket, "{ms} ms");
    }
    Ok(())
}

#[tokio::test]
async fn sketches_merge_the_same_in_the_database() -> Result<()> {
    let db = TestDb::new().await?;
    let mut rng = StdRng::seed_from_u64(33);
    for _ in 0..50 {
        let [mut a, mut b] = [Sketch::default(), Sketch::default()];
        for sketch in [&mut a, &mut b] {
            for _ in 0..rng.random_range(0..30) {
                sketch.add(rng.random_range(0..500));
            }
        }
        let merged: Vec<i64> = sqlx::query_scalar("select nexus_sketch_merge($1, $2)")
            .bind(a.to_pairs())
            .bind(b.to_pairs())
            .fetch_one(&db.pool)
            .await?;
        a.merge(&b);
        assert_eq!(merged, a.to_pairs());
    }
    Ok(())
}

#[tokio::test]
async fn sketches_are_added_to_the_same_in_the_database() -> Result<()> {
    let db = TestDb::new().await?;
    let mut rng = StdRng::seed_from_u64(34);
    let (mut stored, mut whole, mut longest) = (Vec::new(), Sketch::default(), 0);
    for _ in 0..60 {
        let latencies: Vec<i32> = (0..rng.random_range(0..30)).map(|_| rng.random_range(0..90_000)).collect();
        latencies.iter().for_each(|ms| whole.add(*ms));
        let entries: Vec<i64> = latencies.iter().map(|ms| sketch::entry(sketch::bucket(*ms), 1)).collect();
        stored = sqlx::query_scalar::<_, Vec<i64>>("select nexus_sketch_add($1, $2)")
            .bind(&stored)
            .bind(&entries)
            .fetch_one(&db.pool)
            .await?;
        longest = longest.max(stored.len());
        let mut read = Sketch::default();
        read.add_entries(&stored);
        assert_eq!(read, whole);
    }
    assert!((150..=600).contains(&longest) && longest < whole.count() as usize, "{longest} entries");
    let compact: Vec<i64> =
        sqlx::query_scalar("select nexus_sketch_compact($1)").bind(&stored).fetch_one(&db.pool).await?;
    let pairs = whole.to_pairs();
    let entries: Vec<i64> = pairs.chunks_exact(2).map(|pair| sketch::entry(pair[0], pair[1])).collect();
    assert_eq!(compact, entries);
    Ok(())
}
