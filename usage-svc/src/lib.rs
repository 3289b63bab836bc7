//! usage-svc: records usage exactly once, admits against quota, keeps API keys
