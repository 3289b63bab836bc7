//! An account's API keys.

use nexus_proto::usage::v1 as usage;

use super::{Backend, NO_ACCOUNT, refused};
use crate::{auth::User, error::Error};

const NO_KEY: &str = "API key not found";

impl Backend {
    /// Makes a key.
    pub async fn create_api_key(
        &self,
        user: &User,
        request: usage::CreateApiKeyRequest,
    ) -> Result<usage::CreateApiKeyResponse, Error> {
        let mut client = self.users.usage.clone();
        let send = |r| async move { client.create_api_key(r).await };
        let answer = self.ask("UsageService.CreateApiKey", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// A page of the keys.
    pub async fn api_keys(
        &self,
        user: &User,
        request: usage::ListApiKeysRequest,
    ) -> Result<usage::ListApiKeysResponse, Error> {
        let mut client = self.users.usage.clone();
        let send = |r| async move { client.list_api_keys(r).await };
        let answer = self.ask("UsageService.ListApiKeys", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// Revokes a key.
    pub async fn revoke_api_key(
        &self,
        user: &User,
        request: usage::RevokeApiKeyRequest,
    ) -> Result<usage::RevokeApiKeyResponse, Error> {
        let mut client = self.users.usage.clone();
        let send = |r| async move { client.revoke_api_key(r).await };
        let answer = self.ask("UsageService.RevokeApiKey", user, request, send).await;
        answer.map_err(refused(NO_KEY))
    }

    /// Gives a key a new secret.
    pub async fn rotate_api_key(
        &self,
        user: &User,
        request: usage::RotateApiKeyRequest,
    ) -> Result<usage::RotateApiKeyResponse, Error> {
        let mut client = self.users.usage.clone();
        let send = |r| async move { client.rotate_api_key(r).await };
        let answer = self.ask("UsageService.RotateApiKey", user, request, send).await;
        answer.map_err(refused(NO_KEY))
    }
}
