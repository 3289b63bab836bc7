//! Hands Stripe's webhooks on to billing-svc, byte for byte, to one replica after the other. One that is not there takes
//! none, and Stripe sends it again.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::BytesMut;
use nexus_proto::billing::v1::HandleStripeEventRequest;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::OwnedMutexGuard,
    task::AbortHandle,
};

use super::{http, strikes::lock};
use crate::{billing::Client, proxy::accept};

/// What Stripe signs with.
pub(super) const SECRET: &str = "whsec_harness";

/// Ends when dropped, with its connections.
pub(super) struct Gateway {
    url: String,
    open: Arc<tokio::sync::Mutex<()>>,
    task: AbortHandle,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where the replicas are reached.
#[derive(Clone, Default)]
pub(super) struct Replicas {
    clients: Arc<Mutex<Vec<Client>>>,
    asked: Arc<AtomicUsize>,
}

impl Replicas {
    /// Another replica, or another in the place of one.
    pub(super) fn set(&self, replica: usize, client: Client) {
        let mut clients = lock(&self.clients);
        match clients.get_mut(replica) {
            Some(before) => *before = client,
            None => clients.push(client),
        }
    }

    fn next(&self) -> Option<Client> {
        let clients = lock(&self.clients);
        let turn = self.asked.fetch_add(1, Ordering::Relaxed) % clients.len().max(1);
        clients.get(turn).cloned()
    }
}

impl Gateway {
    pub(super) async fn start(replicas: Replicas) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}/webhooks/stripe", listener.local_addr()?);
        let open = Arc::new(tokio::sync::Mutex::new(()));
        let door = open.clone();
        let hand_on = move |stripe| hand_on(stripe, replicas.clone(), door.clone());
        let task = tokio::spawn(accept(listener, hand_on)).abort_handle();
        Ok(Self { url, open, task })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Takes no webhooks until what is returned is dropped; those in hand have come to their end.
    pub(super) async fn close(&self) -> OwnedMutexGuard<()> {
        self.open.clone().lock_owned().await
    }
}

/// One connection; a webhook is taken once billing-svc has stored it.
async fn hand_on(
    mut stripe: TcpStream,
    replicas: Replicas,
    open: Arc<tokio::sync::Mutex<()>>,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    while let Some(webhook) = http::read(&mut stripe, &mut buffer).await? {
        let signature = http::header(&webhook, "stripe-signature").unwrap_or_default();
        let request = HandleStripeEventRequest { payload: http::body(&webhook).to_vec(), signature };
        let is_taken = match (open.try_lock(), replicas.next()) {
            (Ok(_door), Some(mut replica)) => replica.hear(request).await.is_ok(),
            _ => false,
        };
        let status = if is_taken { "200 OK" } else { "503 Service Unavailable" };
        stripe.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await?;
    }
    Ok(())
}
