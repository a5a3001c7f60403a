"""What kube-apiserver and a KMS plugin say to each other; `scripts/grpc` makes the modules from the .proto files."""
