-- wrk: every request uploads two kilobytes.
wrk.method = "POST"
wrk.body = string.rep("culvert ", 256)
