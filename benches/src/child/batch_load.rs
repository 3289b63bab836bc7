use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use nexus_client::CallOptions;
use nexus_proto::usage::v1::{BatchRecordUsageRequest, BatchRecordUsageResponse};
use prost::Message;
use tonic::{
    Status,
    client::Grpc,
    codec::{Codec, EncodeBuf, Encoder},
    transport::Channel,
};
use tonic_prost::ProstDecoder;

use super::{
    batches::{self, Batch, Sender, WorkloadArgs},
    connect,
    record_load::usage_event,
};
use crate::{
    process::{self, TOKEN_VARIABLE},
    workload::Event,
};

const PATH: &str = "/nexus.usage.v1.UsageService/BatchRecordUsage";
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    url: String,
    #[arg(long, env = TOKEN_VARIABLE, hide_env_values = true)]
    token: String,
    #[command(flatten)]
    workload: WorkloadArgs,
}

pub(super) async fn run(args: Args) -> Result<()> {
    let options = CallOptions::bearer(&args.token, DEADLINE)?;
    let mut senders = Vec::new();
    for _ in 0..args.workload.connections() {
        let channel = connect(&args.url).await?;
        senders.push(Connection { grpc: Grpc::new(channel), options: options.clone() });
    }
    process::report(&batches::run(&args.workload, senders, encode).await?)
}

fn encode(events: Vec<Event>) -> Bytes {
    let events = events.into_iter().map(usage_event).collect();
    BatchRecordUsageRequest { events }.encode_to_vec().into()
}

struct Connection {
    grpc: Grpc<Channel>,
    options: CallOptions,
}

impl Sender for Connection {
    async fn send(&mut self, batch: Batch) -> Result<()> {
        self.grpc.ready().await?;
        let request = self.options.request(batch.encoded);
        let path = http::uri::PathAndQuery::from_static(PATH);
        let answer = self.grpc.unary(request, path, EncodedCodec).await?.into_inner();
        ensure!(
            i64::from(answer.accepted_count) == i64::from(batch.events),
            "of {} events were accepted {answer:?}",
            batch.events
        );
        Ok(())
    }
}

/// Sends requests that are encoded already.
struct EncodedCodec;

impl Codec for EncodedCodec {
    type Encode = Bytes;
    type Decode = BatchRecordUsageResponse;
    type Encoder = EncodedEncoder;
    type Decoder = ProstDecoder<BatchRecordUsageResponse>;

    fn encoder(&mut self) -> EncodedEncoder {
        EncodedEncoder
    }

    fn decoder(&mut self) -> ProstDecoder<BatchRecordUsageResponse> {
        ProstDecoder::default()
    }
}

struct EncodedEncoder;

impl Encoder for EncodedEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buffer, item);
        Ok(())
    }
}
