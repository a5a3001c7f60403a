"""Kubernetes: the secrets of a cluster under a root key, by a KMS plugin beside each kube-apiserver."""
