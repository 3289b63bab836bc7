//! The gRPC contract: generated types, clients and servers, and the descriptors that reflection serves.
//!
//! The `.proto` files beside this crate are the source; their comments are the documentation.

pub mod codec;

/// Words that all three services share.
pub mod common {
    /// `nexus.common.v1`
    pub mod v1 {
        tonic::include_proto!("nexus.common.v1");
    }
}

/// Recording, quota and API keys.
pub mod usage {
    /// `nexus.usage.v1`
    pub mod v1 {
        tonic::include_proto!("nexus.usage.v1");
    }
}

/// Accounts, plans and overage.
pub mod billing {
    /// `nexus.billing.v1`
    pub mod v1 {
        tonic::include_proto!("nexus.billing.v1");
    }
}

/// History, statistics and revenue.
pub mod analytics {
    /// `nexus.analytics.v1`
    pub mod v1 {
        tonic::include_proto!("nexus.analytics.v1");
    }
}

/// Encoded `FileDescriptorSet` of all our packages and what they import.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nexus.bin"));

/// Encoded `FileDescriptorSet` of `google.rpc.Status` details, so that a reflection client can decode
/// the details of our errors.
pub use tonic_types::pb::FILE_DESCRIPTOR_SET as ERROR_DETAILS_DESCRIPTOR_SET;

/// Domain of every `ErrorInfo` we send.
pub const ERROR_DOMAIN: &str = "nexus.metering";
