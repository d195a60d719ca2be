"""The command line: anole up, gateway, scheduler, worker, memd, adapters, chat, doctor."""
