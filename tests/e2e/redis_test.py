"""An unmodified redis-server serves kernel clients through Culvert: values, pipelines, pub/sub, a dump by a forked child."""
import os
import threading

from story import Story, run, until
from netns import sha256
from servers import Redis, RedisClient, pseudo_random


class RedisStory(Story):
    @classmethod
    def prepare(cls):
        cls.redis = Redis(cls.lab, under=cls.culvert)

    def client(self, address=None):
        return RedisClient(address or self.lab.ip4())

    def benchmark(self, *words):
        text = self.lab.call("redis-benchmark", "-h", self.lab.ip4(), "--csv", *words, timeout=120)
        self.assertNotIn("rror", text)
        return text

    def test_set_and_get_of_every_size(self):
        sizes = [0, 1, 100, 1447, 1448, 1449, 4096, 65535, 65536, 1 << 20, 5 << 20]
        with self.carried(1), self.client() as client:
            for size in sizes:
                value = pseudo_random(size, size)
                self.assertEqual(client.ask("SET", f"key:{size}", value), "OK")
                self.assertEqual(client.ask("STRLEN", f"key:{size}"), size)
            for size in sizes:
                self.assertEqual(sha256(client.ask("GET", f"key:{size}")), sha256(pseudo_random(size, size)))
            self.assertIsNone(client.ask("GET", "no such key"))

    def test_ipv6_client(self):
        with self.carried(1), self.client(self.lab.ip6()) as client:
            self.assertEqual(client.ask("PING"), "PONG")

    def test_pipeline_of_ten_thousand_commands(self):
        with self.carried(1), self.client() as client:
            writer = threading.Thread(target=lambda: [client.send("INCR", "counter") for _ in range(10000)])
            writer.start()
            self.assertEqual([client.receive() for _ in range(10000)], list(range(1, 10001)))
            writer.join()

    def test_publish_and_subscribe(self):
        with self.carried(9):
            subscribers = [self.client() for _ in range(8)]
            for subscriber in subscribers:
                self.assertEqual(subscriber.ask("SUBSCRIBE", "news"), [b"subscribe", b"news", 1])
            with self.client() as publisher:
                for number in range(100):
                    self.assertEqual(publisher.ask("PUBLISH", "news", f"message {number}"), 8)
            for subscriber in subscribers:
                for number in range(100):
                    self.assertEqual(subscriber.receive(), [b"message", b"news", f"message {number}".encode()])
                subscriber.close()

    def test_redis_cli(self):
        with self.carried(2):
            self.assertEqual(self.lab.call("redis-cli", "-h", self.lab.ip4(), "set", "cli", "value").strip(), "OK")
            self.assertEqual(self.lab.call("redis-cli", "-h", self.lab.ip4(), "get", "cli").strip(), "value")

    def test_redis_benchmark_sees_no_error(self):
        with self.carried(100):
            self.benchmark("-t", "get,set", "-n", "30000", "-c", "50", "-P", "1")
            self.benchmark("-t", "get,set,lpush,lrange_100", "-n", "30000", "-c", "50", "-P", "16")

    def test_dump_under_load_by_a_forked_child(self):
        """BGSAVE forks: the child holds copies of all sockets and must not disturb them."""
        with self.client() as client:
            value = pseudo_random(1 << 20, 7)
            for number in range(20):
                client.ask("SET", f"dump:{number}", value)
            saved = client.ask("LASTSAVE")
            failed = []

            def load():
                try:
                    self.benchmark("-t", "get", "-n", "60000", "-c", "20")
                except Exception as error:  # shown by the assertion below
                    failed.append(error)
            thread = threading.Thread(target=load)
            thread.start()
            try:
                for _ in range(3):
                    client.ask("BGSAVE")
                    until(lambda: b"rdb_bgsave_in_progress:0" in client.ask("INFO", "persistence"), "the dump to end", 30)
            finally:
                thread.join()
            self.assertEqual(failed, [])
            self.assertGreaterEqual(client.ask("LASTSAVE"), saved)
            self.assertIn(b"rdb_last_bgsave_status:ok", client.ask("INFO", "persistence"))
            self.assertGreater(os.path.getsize(f"{self.redis.directory}/dump.rdb"), 1 << 20)
            self.assertEqual(client.ask("GET", "dump:19"), value)

    def test_blocked_client_wakes_up(self):
        with self.client() as waiting, self.client() as pushing:
            waiting.send("BLPOP", "list", 20)
            until(lambda: b"blocked_clients:1" in pushing.ask("INFO", "clients"), "redis to block the client")
            pushing.ask("RPUSH", "list", "element")
            self.assertEqual(waiting.receive(), [b"list", b"element"])

    def test_client_on_loopback_is_served_by_the_same_redis(self):
        self.assertEqual(self.lab.call("redis-cli", "-h", "127.0.0.1", "ping", host="server").strip(), "PONG")


class RedisShutdown(Story):
    def test_shutdown_frees_everything(self):
        redis = Redis(self.lab, under=self.culvert)
        clients = [RedisClient(self.lab.ip4()) for _ in range(20)]
        clients[0].send("SHUTDOWN", "NOSAVE")
        self.assertEqual(redis.program.wait(), 0)
        for client in clients:
            self.assertEqual(client.socket.recv(100), b"", "every client reads the end of its connection")
            client.close()
        self.wait_for_no_sockets()


if __name__ == "__main__":
    run()
