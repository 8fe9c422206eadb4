-- KEYS: any of the monitor's; it only says which server of a cluster to ask. Returns that server's time in ms.
return now_ms()
