import { promisify } from "node:util";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const definition = protoLoader.loadSync("ledger/v1/ledger.proto", {
  includeDirs: ["proto"],
  longs: String, // versions and counts may be larger than a number can say exactly
  arrays: true, // also those that hold nothing
});
const { LedgerService } = grpc.loadPackageDefinition(definition).ledger.v1;
const client = new LedgerService("127.0.0.1:50051", grpc.credentials.createInsecure());
const ask = (method, request) =>
  promisify(client[method].bind(client))(request, { deadline: Date.now() + 2000 });

const { balance } = await ask("getBalance", { userId: "test-8-june-9", currency: "USD" });
console.log(balance.amount.value, balance.amount.currency, "after", balance.version, "postings");

const page = { userId: "test-8-june-9", pageSize: 100 };
do {
  const { rewards, nextPageToken } = await ask("listRewards", page);
  for (const reward of rewards) {
    console.log(reward.rewardId, reward.posting?.amount.value ?? "nothing");
  }
  page.pageToken = nextPageToken;
} while (page.pageToken);

let token; // where to go on, now or after a restart
const watch = client.watchRewards({ fromBeginning: true, userId: "test-8-june-9" });
for await (const told of watch) {
  for (const reward of told.rewards) console.log("told of", reward.rewardId);
  token = told.token;
  if (told.rewards.length > 0) break; // or never: when it fails, ask again with { token }
}
watch.cancel();

try {
  await ask("getReward", { rewardId: "no-such-reward" });
} catch (error) {
  console.log(grpc.status[error.code], error.details);
}
client.close();
