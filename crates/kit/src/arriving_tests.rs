use std::convert::Infallible;

use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use tokio::time::Instant;
use tonic::Code;

use super::*;

/// What is free, and 1,000 bytes more.
const LARGE: usize = FREE_BYTES + 1_000;

/// Of a message, where that does not matter.
const MAX: usize = MAX_BATCH_BYTES;

/// A message of so many bytes, of which the last are missing.
fn message(bytes: usize, missing: usize) -> Bytes {
    let length = u32::try_from(bytes).expect("a length").to_be_bytes();
    [&[0][..], &length[..], &vec![7; bytes - missing][..]].concat().into()
}

/// A body that brings these pieces and then nothing, without an end.
fn body(pieces: impl IntoIterator<Item = Bytes>) -> Body {
    let pieces: Vec<_> = pieces.into_iter().map(|piece| Ok::<_, Infallible>(Frame::data(piece))).collect();
    Body::new(StreamBody::new(stream::iter(pieces).chain(stream::pending())))
}

fn id(text: &str) -> EcoId {
    EcoId::parse(text).expect("an id")
}

/// The next piece, if there is one by now.
async fn next(body: &mut Body) -> Result<Option<usize>, Status> {
    let frame = futures::poll!(body.frame());
    match frame {
        Poll::Pending => Ok(None),
        Poll::Ready(frame) => {
            Ok(frame.transpose()?.and_then(|frame| frame.into_data().ok()).map(|b| b.len()))
        }
    }
}

#[tokio::test]
async fn incomplete_messages_are_bounded_for_all_and_for_each_account() -> Result<(), Status> {
    let arriving = Arriving::of(8_000);
    let begin = |eco_id: Option<&EcoId>| arriving.bound(body([message(LARGE, LARGE - 1)]), MAX, eco_id);
    let mut all = Vec::new();
    let mine = id("eco_a");
    for _ in 0..2 {
        let mut call = begin(Some(&mine));
        next(&mut call).await?;
        all.push(call);
    }
    // What is said to come counts, 1,000 bytes each: two are a quarter.
    let refused = next(&mut begin(Some(&mine))).await.expect_err("its share is held");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "too much of this account is arriving at once")
    );
    let services: Vec<_> = (0..8).map(|_| begin(None)).collect();
    for mut call in services {
        next(&mut call).await?;
        all.push(call);
    }
    assert!(next(&mut begin(None)).await.is_err(), "theirs is held");
    for other in ["eco_c", "eco_d", "eco_e"].map(id) {
        for _ in 0..2 {
            let mut call = begin(Some(&other));
            next(&mut call).await?;
            all.push(call);
        }
    }
    let other = id("eco_b");
    let refused = next(&mut begin(Some(&other))).await.expect_err("all is held");
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "too much is arriving at once"));
    assert!(
        next(&mut arriving.bound(body([message(FREE_BYTES, 1)]), MAX, Some(&mine))).await?.is_some(),
        "small ones are free"
    );
    all.clear();
    assert_eq!(arriving.incomplete.bytes.load(Ordering::Relaxed), 0);
    assert!(next(&mut begin(Some(&mine))).await?.is_some());
    Ok(())
}

/// It takes more accounts than a few to keep out all others by saying what will come.
#[tokio::test]
async fn what_is_only_said_to_come_counts_for_its_account_and_little_for_all() -> Result<(), Status> {
    let share = 2 * HUGE_PAGE;
    let arriving = Arriving::of(u32::try_from(4 * share).expect("bytes"));
    let claim = |account: usize| {
        let whose = id(&format!("eco_{account}"));
        arriving.bound(body([message(share, share)]), MAX, Some(&whose))
    };
    let mut all = Vec::new();
    for account in 0..8 {
        let mut call = claim(account);
        assert!(next(&mut call).await?.is_some());
        next(&mut claim(account)).await.expect_err("its share is held");
        all.push(call);
    }
    let refused = next(&mut claim(8)).await.expect_err("all is held");
    assert_eq!(refused.message(), "too much is arriving at once");

    // The same of what streams keep, of which there is more, and of packed ones, whose few bytes become many.
    let stream = |account: usize, missing: usize| {
        let whose = id(&format!("eco_{account}"));
        let mut bytes = message(FREE_BYTES, missing).to_vec();
        bytes[0] = 1;
        let body = body([bytes.into()]);
        arriving.bound_stream(body, MAX, Some(&whose), Packing(STREAMS as usize * share / FREE_BYTES))
    };
    let mut kept = Vec::new();
    for account in 0..8 * STREAMS as usize {
        let mut call = stream(account, FREE_BYTES);
        assert!(next(&mut call).await?.is_some(), "{account}");
        kept.push(call);
    }
    next(&mut stream(100, FREE_BYTES)).await.expect_err("all is held");
    kept.clear();
    // What has come counts.
    for account in 0..STREAMS as usize * 4 * share / MAX_BATCH_BYTES {
        let mut call = stream(account, 0);
        assert!(next(&mut call).await?.is_some());
        kept.push(call);
    }
    next(&mut stream(100, 0)).await.expect_err("all is held");
    Ok(())
}

/// Few bytes that become many are held for by the stream that they are of.
#[tokio::test(start_paused = true)]
async fn a_small_packed_message_of_a_stream_has_its_time_as_well() -> Result<(), Status> {
    let bytes = [&[1, 0, 0, 0, 200][..], &[7; 100]].concat().into();
    let mut call = Arriving::default().bound_stream(body([bytes]), MAX, Some(&id("eco_a")), Packing(1_032));
    next(&mut call).await?;
    let late = tokio::time::timeout(2 * MAX_TIME, call.frame()).await.expect("its time is over");
    assert_eq!(late.expect("an error").expect_err("late").code(), Code::DeadlineExceeded);
    Ok(())
}

#[tokio::test]
async fn a_message_that_says_it_is_longer_than_its_rpc_allows_is_refused_at_once() -> Result<(), Status> {
    let arriving = Arriving::default();
    assert!(next(&mut arriving.bound(body([message(1_000, 999)]), 1_000, None)).await?.is_some());
    for streams in [false, true] {
        let body = body([message(1_001, 1_000)]);
        let mut call = match streams {
            true => arriving.bound_stream(body, 1_000, None, Packing::default()),
            false => arriving.bound(body, 1_000, None),
        };
        let refused = next(&mut call).await.expect_err("it is too long");
        assert_eq!((refused.code(), &*status::reason(&refused)), (Code::OutOfRange, "MESSAGE_TOO_LARGE"));
    }
    Ok(())
}

/// Where a caller does not end its call, nothing is unpacked or decoded that would wait for that.
#[tokio::test(start_paused = true)]
async fn a_calls_one_message_is_whole_once_the_call_has_ended() -> Result<(), Status> {
    let arriving = Arriving::of(8_000);
    let held = || arriving.of_services.bytes.load(Ordering::Relaxed);
    let whole = message(LARGE, 0);
    let mut open = arriving.bound(body([whole.clone()]), MAX, None);
    assert_eq!((next(&mut open).await?, held()), (None, 1_000));
    let began = Instant::now();
    let late = open.frame().await.expect("an error").expect_err("late");
    assert_eq!((late.code(), began.elapsed().as_secs()), (Code::DeadlineExceeded, MAX_TIME.as_secs()));
    drop(open);
    assert_eq!(held(), 0);

    let pieces = [whole.slice(..100), whole.slice(100..), Bytes::new()]
        .map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let mut ended = arriving.bound(Body::new(StreamBody::new(stream::iter(pieces))), MAX, None);
    assert_eq!(next(&mut ended).await?, Some(100));
    assert!(!ended.is_end_stream());
    assert_eq!(next(&mut ended).await?, Some(whole.len() - 100));
    assert!(ended.frame().await.is_none());

    let frames = [Frame::data(whole.clone()), Frame::trailers(HeaderMap::new())].map(Ok::<_, Infallible>);
    let mut trailed = arriving.bound(Body::new(StreamBody::new(stream::iter(frames))), MAX, None);
    assert_eq!(next(&mut trailed).await?, Some(whole.len()));
    assert!(trailed.frame().await.is_none());

    let two = |first: usize| [message(first, 0), message(10, 0)];
    for more in [two(10).to_vec(), vec![two(10).concat().into()], vec![two(0).concat().into()]] {
        let refused = next(&mut arriving.bound(body(more), MAX, None)).await.expect_err("one too many");
        assert_eq!(
            (refused.code(), &*status::reason(&refused)),
            (Code::InvalidArgument, "MALFORMED_MESSAGE")
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_message_counts_until_the_next_one_is_asked_for() -> Result<(), Status> {
    let arriving = Arriving::of(8_000);
    let held = || arriving.of_services.bytes.load(Ordering::Relaxed);
    // In pieces, the second of which ends one message and begins the next, within its prefix.
    let (first, second) = (message(LARGE, 0), message(LARGE, 0));
    let stream = [first, second].concat();
    let cut = LARGE + PREFIX + 2;
    let pieces = [&stream[..3], &stream[3..LARGE], &stream[LARGE..cut], &stream[cut..]];
    let mut call =
        arriving.bound_stream(body(pieces.map(Bytes::copy_from_slice)), MAX, None, Packing::default());
    let mut seen = Vec::new();
    while next(&mut call).await?.is_some() {
        seen.push(held());
    }
    // And the prefix of the one that ended.
    assert_eq!(seen, [0, 1_000, 1_005, 1_000]);
    assert_eq!(held(), 0, "what follows was asked for");
    Ok(())
}

#[tokio::test]
async fn a_stream_of_an_account_keeps_what_its_largest_message_took() -> Result<(), Status> {
    let arriving = Arriving::of(8_000);
    let (mine, small) = (id("eco_a"), message(10, 0));
    let begin =
        |first: Bytes| arriving.bound_stream(body([first, small.clone()]), MAX, Some(&mine), Packing(100));
    let mut all = Vec::new();
    // Of 32,000 bytes an account has a quarter.
    for _ in 0..8 {
        let mut call = begin(message(LARGE, 0));
        while next(&mut call).await?.is_some() {}
        all.push(call);
    }
    assert_eq!(arriving.incomplete.bytes.load(Ordering::Relaxed), 0, "each is complete");
    let refused = next(&mut begin(message(LARGE, 0))).await.expect_err("its share is kept");
    assert_eq!(refused.code(), Code::Unavailable);
    let mut of_a_service = arriving.bound_stream(body([message(LARGE, 0)]), MAX, None, Packing::default());
    assert!(next(&mut of_a_service).await?.is_some(), "it has no bound");
    all.pop();
    let mut again = begin(message(LARGE, 0));
    assert!(next(&mut again).await?.is_some());
    drop((all, again));
    // Few bytes that may become many: of 164 bytes each there are 16,400.
    let packed = |bytes: u8| [&[1, 0, 0, 0, bytes][..], &vec![7; bytes.into()]].concat().into();
    assert!(next(&mut begin(packed(164))).await?.is_some());
    next(&mut begin(packed(255))).await.expect_err("more than its share");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_large_message_that_does_not_come_to_its_end_is_given_up() -> Result<(), Status> {
    let arriving = Arriving::of(8_000);
    let mut call = arriving.bound(body([message(LARGE, 1)]), MAX, None);
    next(&mut call).await?;
    let began = Instant::now();
    let late = call.frame().await.expect("an error").expect_err("late");
    assert_eq!((late.code(), began.elapsed().as_secs()), (Code::DeadlineExceeded, MAX_TIME.as_secs()));
    // A stream may be silent between messages.
    let mut call = arriving.bound_stream(body([message(LARGE, 0)]), MAX, None, Packing::default());
    next(&mut call).await?;
    let silent = tokio::time::timeout(2 * MAX_TIME, call.frame()).await;
    assert!(silent.is_err());
    Ok(())
}

/// Each has its own time, from when it is asked for.
#[tokio::test(start_paused = true)]
async fn messages_that_end_and_begin_in_one_piece_are_not_late_one_for_the_other() -> Result<(), Status> {
    let whole = [message(LARGE, 0), message(LARGE, 0), message(LARGE, 0)].concat();
    let (send, pieces) = futures::channel::mpsc::unbounded();
    let pieces = pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let body = Body::new(StreamBody::new(pieces));
    let mut call = Arriving::of(80_000).bound_stream(body, MAX, None, Packing::default());
    for piece in whole.chunks(PREFIX + LARGE + 10).take(2) {
        send.unbounded_send(Bytes::copy_from_slice(piece)).expect("it is read");
        assert_eq!(next(&mut call).await?, Some(piece.len()));
        assert_eq!(next(&mut call).await?, None);
        tokio::time::advance(MAX_TIME * 2 / 3).await;
    }
    assert_eq!(next(&mut call).await?, None);
    tokio::time::advance(MAX_TIME).await;
    next(&mut call).await.expect_err("the last one is late");
    Ok(())
}
