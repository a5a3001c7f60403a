-- One request again and again, given by the environment so that no token shows in the process list.
wrk.method = "POST"
wrk.path = os.getenv("BENCH_PATH")
wrk.body = os.getenv("BENCH_BODY")
wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCH_TOKEN")
wrk.headers["Bluemix-Instance"] = os.getenv("BENCH_INSTANCE")
