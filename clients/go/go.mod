module foreman/clients/go

go 1.22
