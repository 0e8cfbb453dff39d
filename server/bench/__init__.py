"""An open loop of requests against any server with OpenAI's API: `ostinato bench serve`."""
